"""The commands, one file each: its options and what it joins. Numbers are computed in the rooms below."""
