"""Request checks before admission.

May import domain and the plugin API.
"""
