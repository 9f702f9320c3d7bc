//! Who this node is: its key, its certificate, and the authority that all nodes of the mesh have in common.
//!
//! Files below `<state_dir>/peers`, directories 0700, keys 0600:
//!
//! ```text
//!  ca.crt  the authority           ca.key    only where `ingress peer init` was run; it lets further nodes in
//!  node.crt  this node             node.key
//! ```
//! Certificates do not expire: a node leaves the mesh by being removed, and one whose clock is wrong can still say so.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// As read from disk. Its `Debug` shows no key.
#[derive(Debug)]
pub struct Identity {
    pub(super) authority: CertificateDer<'static>,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
    /// Whether this node can let others in.
    pub may_invite: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {what}", path.display())]
    Unusable { path: PathBuf, what: String },
    #[error(
        "this node has no identity yet; run `ingress peer init` on the first node, `ingress peer join` on the others"
    )]
    Missing,
    #[error("there is an identity in {} already; remove that directory to begin anew", path.display())]
    Present { path: PathBuf },
    #[error("this node cannot let others in: ca.key is only where `ingress peer init` was run")]
    NoAuthority,
    #[error("making a key or certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// A node's name and public key, as a certificate is asked for.
pub(super) struct PublicKey(pub(super) Vec<u8>);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("peers")
}

impl Identity {
    /// # Errors
    /// [`IdentityError::Missing`] before init or join.
    pub fn load(state_dir: &Path) -> Result<Self, IdentityError> {
        let directory = directory(state_dir);
        if !directory.join(NODE_CERTIFICATE).exists() {
            return Err(IdentityError::Missing);
        }
        let unusable = |name: &str| {
            let path = directory.join(name);
            move |error: rustls::pki_types::pem::Error| IdentityError::Unusable { path, what: error.to_string() }
        };
        let certificate = |name: &str| CertificateDer::from_pem_file(directory.join(name)).map_err(unusable(name));
        Ok(Self {
            authority: certificate(AUTHORITY)?,
            certificate: certificate(NODE_CERTIFICATE)?,
            key: PrivateKeyDer::from_pem_file(directory.join(NODE_KEY)).map_err(unusable(NODE_KEY))?,
            may_invite: directory.join(AUTHORITY_KEY).exists(),
        })
    }

    /// Makes an authority and this node's certificate.
    pub fn init(state_dir: &Path, node: &str) -> Result<Self, IdentityError> {
        let directory = fresh(state_dir)?;
        let key = KeyPair::generate()?;
        let authority = authority_params().self_signed(&key)?;
        write(&directory, AUTHORITY_KEY, &key.serialize_pem())?;
        write(&directory, AUTHORITY, &authority.pem())?;
        let own = KeyPair::generate()?;
        let certificate = node_params(node)?.signed_by(&own, &Issuer::new(authority_params(), key))?;
        write(&directory, NODE_KEY, &own.serialize_pem())?;
        write(&directory, NODE_CERTIFICATE, &certificate.pem())?;
        Self::load(state_dir)
    }

    /// Keeps what another node's authority gave for `key`.
    pub(super) fn adopt(
        state_dir: &Path,
        authority: &CertificateDer<'_>,
        certificate: &CertificateDer<'_>,
        key: &KeyPair,
    ) -> Result<Self, IdentityError> {
        let directory = fresh(state_dir)?;
        write(&directory, AUTHORITY, &pem(authority))?;
        write(&directory, NODE_KEY, &key.serialize_pem())?;
        // What `load` looks for comes last.
        write(&directory, NODE_CERTIFICATE, &pem(certificate))?;
        Self::load(state_dir)
    }

    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }
}

/// Signs `key` as `node`'s; on the node with the authority's key.
pub(super) fn sign(state_dir: &Path, node: &str, key: &PublicKey) -> Result<CertificateDer<'static>, IdentityError> {
    let path = directory(state_dir).join(AUTHORITY_KEY);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(IdentityError::NoAuthority),
        read => read.map_err(failed("reading", &path))?,
    };
    let issuer = Issuer::new(authority_params(), KeyPair::from_pem(&text)?);
    Ok(node_params(node)?.signed_by(key, &issuer)?.der().clone())
}

/// SHA-256 of a certificate, as it is shown and compared.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hash(certificate)
}

pub(super) fn hash(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, bytes))
}

/// The name under which a node's certificate is valid.
pub(super) fn tls_name(node: &str) -> String {
    format!("{node}.peers.ingress.internal")
}

/// What makes a fresh directory, or one where a join broke off.
fn fresh(state_dir: &Path) -> Result<PathBuf, IdentityError> {
    let path = directory(state_dir);
    if path.join(NODE_CERTIFICATE).exists() {
        return Err(IdentityError::Present { path });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed("creating", &path))?;
    Ok(path)
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("ingress peers");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn node_params(node: &str) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(vec![tls_name(node)])?;
    params.distinguished_name = named(node);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Whole or not at all, readable by the owner only, and there after a power failure.
pub(super) fn write(directory: &Path, name: &str, text: &str) -> Result<(), IdentityError> {
    let (path, temporary) = (directory.join(name), directory.join(format!("{name}.new")));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("removing", &temporary)(error)),
        Ok(()) | Err(_) => {}
    }
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(failed("writing", &temporary))?;
    fs::rename(&temporary, &path).map_err(failed("replacing", &path))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("syncing", directory))
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::Io { action, path: path.to_owned(), source }
}

const AUTHORITY: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const NODE_CERTIFICATE: &str = "node.crt";
const NODE_KEY: &str = "node.key";
