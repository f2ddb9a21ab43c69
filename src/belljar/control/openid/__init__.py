"""Sign-in by OpenID Connect: the authorization code flow with PKCE, as a client of one provider."""
