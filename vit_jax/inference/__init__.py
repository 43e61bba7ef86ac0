"""Trained models at work: loading them, predicting, evaluating, looking inside, exporting."""
