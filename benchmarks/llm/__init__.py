"""What language models cost in Naiad and in other engines, on the same CPU in the same run."""
