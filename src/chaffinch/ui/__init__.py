"""The app's side of things: the only package that imports streamlit."""
