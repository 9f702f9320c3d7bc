//! What is wanted and what is there -> what to do. Pure.
//!
//! **Nothing is ever deleted**, and no record is touched that has another name or type. One that somebody else changed after
//! us is left alone: that may be an operator, or another node that was given the same name.

use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

/// The type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    A,
    Aaaa,
}

/// A record that a provider has.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// As the provider says it.
    pub(super) address: String,
    /// All that the provider says of it.
    pub(super) raw: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    Create,
    /// The record at this place among those found.
    Replace(usize),
    /// Somebody has to look. Never changes anything.
    LeaveAlone(String),
}

/// `ours` is what this node wrote last, if it ever did.
pub(super) fn plan(found: &[Found], wanted: IpAddr, ours: Option<IpAddr>) -> Step {
    let is = |record: &Found, address: IpAddr| record.address.parse() == Ok(address);
    if found.iter().any(|record| is(record, wanted)) {
        return Step::Nothing;
    }
    let written = ours.and_then(|ours| found.iter().position(|record| is(record, ours)));
    match (found, written, ours) {
        ([], _, _) => Step::Create,
        (_, Some(n), _) => Step::Replace(n),
        ([_], None, None) => Step::Replace(0),
        ([one], None, Some(ours)) => Step::LeaveAlone(format!(
            "it says {}, and this node wrote {ours}: somebody else changed it. Remove the record at the provider, and it is made anew",
            one.address
        )),
        ([_, _, ..], None, _) => Step::LeaveAlone(format!(
            "there are {} records of this name and type, and none is known to be this node's",
            found.len()
        )),
    }
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
        }
    }

    pub(super) const fn fits(self, address: IpAddr) -> bool {
        matches!((self, address), (Self::A, IpAddr::V4(_)) | (Self::Aaaa, IpAddr::V6(_)))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(addresses: &[&str]) -> Vec<Found> {
        addresses.iter().map(|address| Found { address: (*address).to_owned(), raw: Value::Null }).collect()
    }

    fn step(addresses: &[&str], ours: Option<&str>) -> Step {
        let ip = |text: &str| text.parse().expect("an address");
        plan(&found(addresses), ip("2001:db8::1"), ours.map(ip))
    }

    #[test]
    fn what_is_right_is_left_however_it_is_written() {
        assert_eq!(step(&["2001:db8:0:0::1"], None), Step::Nothing);
        assert_eq!(step(&["2001:db8::9", "2001:db8::1"], Some("2001:db8::9")), Step::Nothing);
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_old_is_replaced() {
        assert_eq!(step(&[], Some("2001:db8::9")), Step::Create);
        assert_eq!(step(&["2001:db8::9"], None), Step::Replace(0), "the only one of this name, at the first time");
        assert_eq!(step(&["2001:db8::9"], Some("2001:db8::9")), Step::Replace(0));
        assert_eq!(step(&["2001:db8::7", "2001:db8::9"], Some("2001:db8::9")), Step::Replace(1));
    }

    #[test]
    fn what_somebody_else_wrote_is_left_alone() {
        let Step::LeaveAlone(why) = step(&["2001:db8::7"], Some("2001:db8::9")) else { panic!("it was touched") };
        assert!(why.contains("2001:db8::7") && why.contains("somebody else changed it"), "{why}");
        let Step::LeaveAlone(why) = step(&["2001:db8::7", "2001:db8::8"], None) else { panic!("it was touched") };
        assert!(why.starts_with("there are 2 records"), "{why}");
    }
}
