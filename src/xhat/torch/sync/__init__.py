"""Batch normalization over several processes: the layer, the exchange between ranks, and the merge of their moments."""
