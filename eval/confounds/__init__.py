"""Does an encoder see the patient or the scanner? Probes of acquisition, and scores with acquisition taken out."""
