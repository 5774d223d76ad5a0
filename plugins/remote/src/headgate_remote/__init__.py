"""Remote providers behind Headgate: any OpenAI-compatible server."""
