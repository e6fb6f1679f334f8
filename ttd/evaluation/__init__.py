"""What the evaluation is made of: features of pictures, retrieval, scores of generated pictures, what matters in the EEG."""
