"""The commands by what users do: runs, data, checkpoints, tools. Imports that cost time stand inside the commands."""
