"""All that knows gRPC. Empty until the Open Inference Protocol's gRPC side is built.

May import inference, admin and the dialects.
"""
