"""The worker as a child process of the controller: its command line and its verbs."""
