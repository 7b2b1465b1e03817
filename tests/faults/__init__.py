"""Fault harnesses: kills, damaged checkpoints, full disks. Each is a command, and a short form of it is a test."""
