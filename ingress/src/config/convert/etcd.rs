//! The shared store: where it is, and who this node is there.

use crate::config::decode::{At, Located};
use crate::config::file::{FileEtcd, FileEtcdTls};
use crate::config::report::Report;
use crate::config::yaml::NodeId;
use crate::config::{EtcdConfig, EtcdIdentity, EtcdLogin, TokenSource};

pub(super) fn convert_etcd(etcd: Located<FileEtcd>, report: &mut Report<'_>) -> EtcdConfig {
    let Located { node, value } = etcd;
    let FileEtcd { node: name, endpoints, prefix, tls, username, password_file, password_env, timeout } = value;
    report.refuse_empty(node, "endpoints", "name the client URL of at least one member");
    let is_plain = endpoints.0.iter().any(|endpoint| endpoint.value.0.starts_with("http://"));
    let endpoints = endpoints.0.into_iter().filter_map(|Located { node, value }| {
        let url = value.0.trim_end_matches('/');
        let is_bare = url.split_once("://").is_some_and(|(_, host)| !host.contains(['/', '?']));
        if !is_bare {
            report.error(At::Value(node), "write scheme, host and port only, such as https://10.0.0.11:2379", None);
        }
        is_bare.then(|| url.to_owned())
    });
    let endpoints = endpoints.collect();
    let (ca_file, identity) = tls.map_or((None, None), |tls| convert_tls(tls, report));
    let has_password = ["password_file", "password_env"].map(|key| report.tree.child(node, key).is_some());
    let login = match (username, has_password) {
        (Some(_), [false, false]) => {
            let at = report.value_of(node, "username");
            report.error(at, "this user has no password; write `password_file: /path`, or `password_env: NAME`", None);
            None
        }
        (None, _) => {
            for key in ["password_file", "password_env"] {
                report.refuse_key(node, key, "a password without `username`");
            }
            None
        }
        (Some(username), _) => {
            if has_password == [true, true] {
                report.refuse_key(node, "password_env", "a password has one source; write `password_file` or this");
            }
            let file = password_file.map(|file| TokenSource::File(file.0));
            let password = file.or_else(|| password_env.map(|name| TokenSource::Env(name.0)));
            password.map(|password| EtcdLogin { username: username.0, password })
        }
    };
    if login.is_some() && is_plain {
        let at = report.value_of(node, "endpoints");
        report.warning(at, "the password goes to an `http://` endpoint as clear text");
    }
    EtcdConfig {
        node: name.value.0.to_string(),
        endpoints,
        prefix: convert_prefix(&prefix.0, node, report),
        ca_file,
        identity,
        login,
        timeout: report.positive(&timeout),
    }
}

fn convert_prefix(written: &str, node: NodeId, report: &mut Report<'_>) -> String {
    let prefix = written.trim_end_matches('/');
    if prefix.is_empty() {
        let at = report.value_of(node, "prefix");
        report.error(at, "this would be all of etcd; write a prefix such as /ingress", None);
    }
    prefix.to_owned()
}

fn convert_tls(
    Located { node, value }: Located<FileEtcdTls>,
    report: &mut Report<'_>,
) -> (Option<std::path::PathBuf>, Option<EtcdIdentity>) {
    let FileEtcdTls { ca_file, cert_file, key_file } = value;
    let identity = match (cert_file, key_file) {
        (Some(cert), Some(key)) => Some(EtcdIdentity { cert_file: cert.0, key_file: key.0 }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            report.error(At::Value(node), "`cert_file` and `key_file` belong together", None);
            None
        }
    };
    (ca_file.map(|file| file.0), identity)
}
