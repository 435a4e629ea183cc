"""How `weights` fetches, unpacks and hashes the files of a checkpoint."""
