"""Tasks for people (Label Studio, Argilla), and their answers on the way back."""
