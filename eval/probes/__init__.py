"""Probes as products: fitted and scored on a store, saved with card and figures, applied to new scans."""
