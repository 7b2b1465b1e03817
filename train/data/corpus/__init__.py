"""Text to pretrain on: read from anywhere, cut into sentences, turned into tokens once and kept in a store."""
