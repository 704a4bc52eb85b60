"""What an app is: the manifest schema, content references and the app's name.

Imports neither market nor orchestrator.
"""
