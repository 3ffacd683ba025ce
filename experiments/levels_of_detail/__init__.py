"""Representations of single shapes compared: error against bytes and against seconds."""
