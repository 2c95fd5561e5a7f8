"""The program `staging`: one file per command.

Only this package and `downloader` read the environment, arguments and the terminal.
"""
