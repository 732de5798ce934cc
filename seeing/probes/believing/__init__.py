"""Attention beside causal use: was the evidence seen, and was it believed?"""
