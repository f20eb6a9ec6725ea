"""Checks of an exported file: parity with torch, the accuracy gate, golden vectors."""
