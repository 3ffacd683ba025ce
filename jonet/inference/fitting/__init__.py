"""Codes and poses of observed shapes by optimization, with the network's parameters fixed."""
