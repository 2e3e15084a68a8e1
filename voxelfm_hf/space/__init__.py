"""The browser demo: `voxelfm space` on this machine; the same folder is a Hub Space."""
