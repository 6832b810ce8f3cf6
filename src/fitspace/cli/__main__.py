from fitspace.cli import entry

entry()
