//! Signatures as the Standard Webhooks specification has them (version 1, symmetric): libraries for many languages check them.
//!
//! `webhook-signature: v1,base64(HMAC-SHA256(secret, "{webhook-id}.{webhook-timestamp}.{body}"))`, several with spaces between
//! while secrets are exchanged.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// One secret a line; `whsec_` and base64 as the specification writes them, anything else as it stands.
///
/// # Errors
/// What is wrong with the text, without the text.
pub(super) fn secrets(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secret = |line: &str| match line.strip_prefix(PREFIX) {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| format!("what stands behind {PREFIX} is not base64")),
        None => Ok(line.as_bytes().to_vec()),
    };
    let secrets: Vec<_> = lines.map(secret).collect::<Result<_, _>>()?;
    match secrets.iter().any(|secret| secret.len() < SHORTEST) {
        true => Err(format!("a secret has at least {SHORTEST} bytes; `openssl rand -base64 32` makes one")),
        false if secrets.is_empty() => Err("there is no secret in it".to_owned()),
        false => Ok(secrets),
    }
}

pub(super) fn sign(secrets: &[Vec<u8>], id: &str, timestamp: u64, body: &str) -> String {
    let signed = format!("{id}.{timestamp}.{body}");
    let signatures = secrets.iter().map(|secret| {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("v1,{}", STANDARD.encode(tag))
    });
    signatures.collect::<Vec<_>>().join(" ")
}

const PREFIX: &str = "whsec_";
const SHORTEST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn the_specification_s_example_comes_out() {
        let secrets = secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").expect("a secret");
        let signature = sign(&secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_sign_while_one_takes_the_other_s_place() {
        let old = sign(&secrets("the-old-secret-of-a-hook").expect("one"), "a", 1, "{}");
        let both = sign(&secrets("the-new-secret-of-a-hook\nthe-old-secret-of-a-hook\n").expect("two"), "a", 1, "{}");
        assert!(both.ends_with(&format!(" {old}")), "{both}");
    }

    #[test]
    fn a_secret_that_is_none_is_refused_without_being_repeated() {
        for text in ["", "\n \n", "short", "whsec_not*base64*not*base64"] {
            let error = secrets(text).expect_err(text);
            assert!(text.trim().is_empty() || !error.contains(text.trim()), "{error}");
        }
    }
}
