"""LoRAs and their kin for the DiT: whose names their files use, what they change, and how it is merged."""
