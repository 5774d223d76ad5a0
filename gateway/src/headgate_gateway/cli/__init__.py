"""The headgate command.

May import everything; heavy imports happen inside the commands.
"""
