"""Linear decoders that every encoder stands beside: ridge for pictures, shrinkage LDA for two classes."""
