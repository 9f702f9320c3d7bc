//! The token that lets one node in, once, for a short time.
//!
//! It names where to go and the authority that has to be there, and carries a secret. The node that gave it keeps the
//! secret's hash in a file, which is gone when the token is used.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::identity::{Identity, IdentityError, directory, failed, fingerprint, hash, write};

/// What an operator carries from one node to the other. No `Debug`: it would show the secret.
#[derive(Serialize, Deserialize)]
pub struct Token {
    pub(super) address: SocketAddr,
    /// The name of the node there.
    pub(super) node: String,
    /// Fingerprint of the authority's certificate.
    pub(super) authority: String,
    pub(super) id: String,
    pub(super) secret: String,
    /// Unix seconds.
    pub(super) expires: u64,
}

/// What stays behind.
#[derive(Serialize, Deserialize)]
struct Invitation {
    secret_hash: String,
    expires: u64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("this token was used already, or {0} never gave it; run `ingress peer invite` there for a new one")]
    Unknown(String),
    #[error("this token has expired; run `ingress peer invite` on {0} for a new one")]
    Expired(String),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token of `ingress peer invite`; copy the whole of it")]
pub struct NoToken;

impl Token {
    pub fn parse(text: &str) -> Result<Self, NoToken> {
        let bytes =
            text.trim().strip_prefix(PREFIX).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or(NoToken)?;
        serde_json::from_slice(&bytes).map_err(|_| NoToken)
    }

    pub fn encode(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// # Errors
    /// Expired, as this node's clock has it. The other one's clock decides in the end.
    pub fn check_time(&self, now: u64) -> Result<(), Refused> {
        if now > self.expires { Err(Refused::Expired(self.node.clone())) } else { Ok(()) }
    }
}

/// Makes a token; the node that gives it listens on `address`. `now`: Unix seconds.
///
/// # Errors
/// There is no authority here, or the disk refuses.
pub fn invite(
    state_dir: &Path,
    node: &str,
    address: SocketAddr,
    validity: Duration,
    now: u64,
) -> Result<Token, IdentityError> {
    let identity = Identity::load(state_dir)?;
    if !identity.may_invite {
        return Err(IdentityError::NoAuthority);
    }
    let random = |length: usize| {
        let mut bytes = vec![0; length];
        // AWS-LC's generator does not fail on Linux; zeros would be refused by no one, so they are never used.
        rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok::<_, IdentityError>(URL_SAFE_NO_PAD.encode(bytes))
    };
    let token = Token {
        address,
        node: node.to_owned(),
        authority: fingerprint(&identity.authority),
        id: random(9)?,
        secret: random(32)?,
        expires: now + validity.as_secs(),
    };
    let invitations = invitations(state_dir);
    DirBuilder::new().recursive(true).mode(0o700).create(&invitations).map_err(failed("creating", &invitations))?;
    remove_expired(&invitations, now);
    let kept = Invitation { secret_hash: hash(token.secret.as_bytes()), expires: token.expires };
    write(&invitations, &token.id, &serde_json::to_string(&kept).unwrap_or_default())?;
    Ok(token)
}

/// Takes a token in: it is good once. `now`: Unix seconds.
pub(super) fn redeem(state_dir: &Path, own: &str, id: &str, secret: &str, now: u64) -> Result<(), Refused> {
    let unknown = || Refused::Unknown(own.to_owned());
    // It becomes part of a path.
    let is_id = id.len() == 12 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let path = invitations(state_dir).join(Some(id).filter(|_| is_id).ok_or_else(unknown)?);
    let kept: Invitation =
        fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(unknown)?;
    if !bool::from(hash(secret.as_bytes()).as_bytes().ct_eq(kept.secret_hash.as_bytes())) {
        return Err(unknown());
    }
    // Of two who come at once, one removes it.
    fs::remove_file(&path).map_err(|_| unknown())?;
    if now > kept.expires { Err(Refused::Expired(own.to_owned())) } else { Ok(()) }
}

fn remove_expired(invitations: &Path, now: u64) {
    for entry in fs::read_dir(invitations).into_iter().flatten().flatten() {
        let kept = fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<Invitation>(&bytes).ok());
        // Those of the last day stay, so that whoever comes late is told why.
        if kept.is_some_and(|kept| kept.expires + 24 * 3600 < now) {
            let _: io::Result<()> = fs::remove_file(entry.path());
        }
    }
}

fn invitations(state_dir: &Path) -> PathBuf {
    directory(state_dir).join("invitations")
}

const PREFIX: &str = "ingress-peer-1.";

#[cfg(test)]
mod tests {
    use super::*;

    fn invited(now: u64) -> (tempfile::TempDir, Token) {
        let state = tempfile::tempdir().expect("a directory");
        Identity::init(state.path(), "a").expect("an identity");
        let address = "10.0.0.1:9877".parse().expect("an address");
        let token = invite(state.path(), "a", address, Duration::from_secs(60), now).expect("a token");
        (state, Token::parse(&token.encode()).expect("the same"))
    }

    #[test]
    fn a_token_is_good_once() {
        let (state, token) = invited(1000);
        let redeem = |secret: &str, now| redeem(state.path(), "a", &token.id, secret, now);
        assert_eq!(redeem("guess", 1001), Err(Refused::Unknown("a".into())));
        assert_eq!(redeem(&token.secret, 1001), Ok(()));
        assert_eq!(redeem(&token.secret, 1001), Err(Refused::Unknown("a".into())));
    }

    #[test]
    fn a_token_ends_by_the_clock_of_the_node_that_gave_it() {
        let (state, token) = invited(1000);
        assert_eq!(redeem(state.path(), "a", &token.id, &token.secret, 1061), Err(Refused::Expired("a".into())));
        assert!(token.check_time(1060).is_ok() && token.check_time(1061).is_err());
    }

    #[test]
    fn an_id_leads_nowhere_else() {
        let (state, token) = invited(1000);
        for id in ["../../../x", "", "aaaaaaaaaaaa", "../ca.key/.."] {
            assert!(redeem(state.path(), "a", id, &token.secret, 1001).is_err(), "{id}");
        }
        assert!(Token::parse("ingress-peer-1.e30").is_err() && Token::parse("x").is_err());
    }

    #[test]
    fn keys_and_invitations_are_the_owners_only() {
        use std::os::unix::fs::PermissionsExt;
        let (state, token) = invited(1000);
        let peers = state.path().join("peers");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        for name in ["ca.key", "node.key", "node.crt"] {
            assert_eq!(mode(&peers.join(name)), 0o600, "{name}");
        }
        assert_eq!((mode(&peers), mode(&peers.join("invitations").join(&token.id))), (0o700, 0o600));
        let kept = fs::read_to_string(peers.join("invitations").join(&token.id)).expect("a file");
        assert!(!kept.contains(&token.secret));
    }
}
