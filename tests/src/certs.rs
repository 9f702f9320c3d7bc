//! A certificate authority for one test, and leaf certificates from it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// A CA whose files live in a directory of the caller's.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
}

/// PEM files of one leaf.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Certificate and key in one file, as HAProxy wants them.
    pub combined: PathBuf,
}

impl Authority {
    pub fn new(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("Lab CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("making the CA's key")?;
        let certificate = params.self_signed(&key).context("signing the CA")?;
        let authority = Self { issuer: Issuer::new(params, key), dir: dir.into() };
        std::fs::write(authority.certificate(), certificate.pem()).context("writing the CA")?;
        Ok(authority)
    }

    /// The CA's own certificate: what clients trust.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// One certificate for all of `names`; files are named after the first.
    pub fn issue(&self, names: &[&str]) -> Result<Leaf> {
        let first = names.first().copied().context("a certificate needs a name")?;
        self.sign(names, first, named(first))
    }

    /// Likewise, with an empty subject.
    pub fn issue_without_common_name(&self, name: &str) -> Result<Leaf> {
        self.sign(&[name], name, DistinguishedName::new())
    }

    fn sign(&self, names: &[&str], first: &str, subject: DistinguishedName) -> Result<Leaf> {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name = subject;
        let key = KeyPair::generate().context("making a leaf's key")?;
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("signing {first}"))?;

        let file = |suffix: &str| self.dir.join(format!("{}.{suffix}", first.replace('*', "_")));
        let leaf = Leaf { certificate: file("crt"), key: file("key"), combined: file("pem") };
        std::fs::write(&leaf.certificate, certificate.pem())?;
        std::fs::write(&leaf.key, key.serialize_pem())?;
        std::fs::write(&leaf.combined, certificate.pem() + &key.serialize_pem())?;
        Ok(leaf)
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
