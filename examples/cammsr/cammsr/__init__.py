"""CAMMSR, a multimodal sequential recommender built from mmfuse."""
