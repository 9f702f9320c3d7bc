//! What a visitor may change: whether a backend takes connections.
//!
//! A browser sends the password along with every request, whoever's page made it. So an order must show that it comes
//! from our own page: by its `Origin`, and by a token that only our page can read.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

use super::{Dashboard, Visitor, forbidden};
use crate::admin::api::{Answer, ApiError, order_status};
use crate::balance::{BackendOrder, Ordered};

/// Made anew with each configuration of `admin.http`, and never written down.
pub(super) struct Token(Option<String>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Forbidden {
    #[error("this dashboard is read-only: nobody was asked for a password; admin.http.basic_auth sets one")]
    Nobody,
    #[error("the order comes from another page than this dashboard; a proxy in between has to pass the Host header on")]
    Elsewhere,
    #[error("the order's token is not the one of this daemon; load the page again")]
    Token,
}

impl Token {
    pub(super) fn new() -> Self {
        let mut bytes = [0; 32];
        // Without randomness there is no token, and so no order.
        let random = aws_lc_rs::rand::fill(&mut bytes);
        Self(random.is_ok().then(|| URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// For the page of a visitor who gave the password.
    pub(super) fn shown(&self) -> Option<String> {
        self.0.clone()
    }

    /// The name of who orders.
    fn check<'a>(&self, visitor: &'a Visitor, headers: &HeaderMap) -> Result<&'a str, Forbidden> {
        let Visitor(Some(user)) = visitor else { return Err(Forbidden::Nobody) };
        if !is_same_origin(headers) {
            return Err(Forbidden::Elsewhere);
        }
        let shown = headers.get(TOKEN).map_or(&b""[..], |token| token.as_bytes());
        let is_right = self.0.as_ref().is_some_and(|token| bool::from(token.as_bytes().ct_eq(shown)));
        if is_right { Ok(user) } else { Err(Forbidden::Token) }
    }
}

/// Browsers write `Origin` into every POST, and no page can forge it. A reverse proxy may have taken the TLS off.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else { return false };
    let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let site = headers.get("sec-fetch-site");
    from == Some(host) && site.is_none_or(|site| site == "same-origin")
}

pub(super) async fn administer(
    State(dashboard): State<Arc<Dashboard>>,
    Extension(visitor): Extension<Visitor>,
    Extension(peer): Extension<SocketAddr>,
    headers: HeaderMap,
    Path((pool, backend)): Path<(String, String)>,
    order: Result<Json<BackendOrder>, JsonRejection>,
) -> Answer<Ordered> {
    let user = match dashboard.token.check(&visitor, &headers) {
        Ok(user) => user,
        Err(why) => {
            // Without a password anybody may come, as often as they like.
            if visitor.0.is_some() {
                tracing::warn!(%peer, pool, backend, %why, "an order on the dashboard is refused");
            }
            return Err(forbidden(&why.to_string()));
        }
    };
    let Json(order) = order?;
    let by = format!("{user} ({}, dashboard)", peer.ip().to_canonical());
    let done = dashboard.admin.clone().administer(pool, backend, order, by).await?;
    done.map(Json).map_err(|error| ApiError(order_status(&error), error.to_string()))
}

const TOKEN: &str = "x-ingress-token";

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    fn check(token: &Token, user: Option<&str>, list: &[(&'static str, &str)]) -> Result<(), Forbidden> {
        token.check(&Visitor(user.map(str::to_owned)), &headers(list)).map(drop)
    }

    #[test]
    fn only_our_own_page_may_order() {
        let token = Token::new();
        let shown = token.shown().expect("there is randomness");
        let right = ("x-ingress-token", shown.as_str());
        let (host, origin) = (("host", "10.0.0.2:8404"), ("origin", "http://10.0.0.2:8404"));
        let same = ("sec-fetch-site", "same-origin");
        let alice = Some("alice");
        assert_eq!(check(&token, alice, &[host, origin, right, same]), Ok(()));
        assert_eq!(check(&token, alice, &[host, origin, right]), Ok(()), "an older browser");
        let behind_tls = ("origin", "https://10.0.0.2:8404");
        assert_eq!(check(&token, alice, &[host, behind_tls, right]), Ok(()));

        assert_eq!(check(&token, None, &[host, origin, right]), Err(Forbidden::Nobody));
        assert_eq!(check(&token, alice, &[host, right]), Err(Forbidden::Elsewhere), "no origin");
        let site = ("sec-fetch-site", "cross-site");
        assert_eq!(check(&token, alice, &[host, origin, right, site]), Err(Forbidden::Elsewhere));
        for other in ["http://evil.example.com", "null", "", "http://10.0.0.2:84040", "10.0.0.2:8404"] {
            let from = ("origin", other);
            assert_eq!(check(&token, alice, &[host, from, right]), Err(Forbidden::Elsewhere), "{other}");
        }
        assert_eq!(check(&token, alice, &[host, origin]), Err(Forbidden::Token));
        let wrong = Token::new().shown().expect("there is randomness");
        for wrong in [wrong.as_str(), "", &shown[1..]] {
            assert_eq!(check(&token, alice, &[host, origin, ("x-ingress-token", wrong)]), Err(Forbidden::Token));
        }
    }

    #[test]
    fn without_a_token_there_is_no_order() {
        let none = Token(None);
        let list = [("host", "a"), ("origin", "http://a"), ("x-ingress-token", "")];
        assert_eq!(check(&none, Some("alice"), &list), Err(Forbidden::Token));
    }
}
