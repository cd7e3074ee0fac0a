"""The verbs of the `octzoo` command, one small file a verb or family of verbs."""
