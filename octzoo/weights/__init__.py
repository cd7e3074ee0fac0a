"""Files of weights and the names in them. Knows no network: shapes come from the state dict handed in."""
