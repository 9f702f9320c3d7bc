//! Type-length-value vectors of a version 2 header (section 2.2, types in 2.2.1 to 2.2.8).

use super::super::reader::{Malformed, Reader};
use super::{Facts, MAX_V2_HEADER};
use crate::config::ProxyTlvs;

/// Section 2.2.5.
pub const MAX_UNIQUE_ID: usize = 128;

/// All TLVs of one header, in order, the bytes as they were received. Whoever holds it knows that they are whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tlvs(Box<[u8]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tlv<'a> {
    pub kind: u8,
    pub value: &'a [u8],
}

/// A CRC32C that a header carries: its value and where the four bytes stand, counted from the first TLV.
#[derive(Debug)]
pub(super) struct Checksum {
    pub(super) value: u32,
    pub(super) offset: usize,
}

impl Tlvs {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let tlv = next(&mut reader)?;
            if tlv.kind == Tlv::UNIQUE_ID && tlv.value.len() > MAX_UNIQUE_ID {
                return Err(Malformed("unique ID"));
            }
        }
        Ok(Self(bytes.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Tlv<'_>> {
        let mut reader = Reader::new(&self.0);
        std::iter::from_fn(move || next(&mut reader).ok())
    }

    /// The value of the first TLV of this type.
    pub fn find(&self, kind: u8) -> Option<&[u8]> {
        self.iter().find(|tlv| tlv.kind == kind).map(|tlv| tlv.value)
    }

    /// At most one, of four bytes: more could not all be computed with their own field zero.
    pub(super) fn checksum(&self) -> Result<Option<Checksum>, Malformed> {
        let mut found = None;
        let mut offset = 0;
        for Tlv { kind, value } in self.iter() {
            offset += TLV_HEADER;
            if kind == Tlv::CRC32C {
                let bytes: [u8; 4] = value.try_into().map_err(|_| Malformed("CRC32C"))?;
                if found.replace(Checksum { value: u32::from_be_bytes(bytes), offset }).is_some() {
                    return Err(Malformed("CRC32C"));
                }
            }
            offset += value.len();
        }
        Ok(found)
    }
}

impl Tlv<'_> {
    pub const ALPN: u8 = 0x01;
    pub const AUTHORITY: u8 = 0x02;
    pub const CRC32C: u8 = 0x03;
    pub const NOOP: u8 = 0x04;
    pub const UNIQUE_ID: u8 = 0x05;
}

fn next<'a>(reader: &mut Reader<'a>) -> Result<Tlv<'a>, Malformed> {
    let kind = reader.u8("TLV type")?;
    let value = reader.vec16("TLV")?;
    Ok(Tlv { kind, value })
}

/// Writes what was passed on, then the facts that are wanted, known and not yet said, then room for a CRC32C if one is
/// wanted or was passed on. Returns where its four bytes stand in `header`. Left out is what would make the header longer
/// than [`MAX_V2_HEADER`]: another of our kind would not read it.
pub(super) fn append(header: &mut Vec<u8>, wanted: ProxyTlvs, facts: &Facts<'_>) -> Option<usize> {
    let ProxyTlvs { authority, alpn, unique_id, crc32c } = wanted;
    let none = Tlvs::default();
    let passed_on = facts.passed_on.unwrap_or(&none);
    let id = facts.unique_id.map(|id| id.to_string());
    let own = [
        (authority, Tlv::AUTHORITY, facts.authority),
        (alpn, Tlv::ALPN, facts.alpn),
        (unique_id, Tlv::UNIQUE_ID, id.as_deref()),
    ];
    let own = own.into_iter().filter_map(|(wanted, kind, value)| {
        let value = value.filter(|_| wanted && passed_on.find(kind).is_none())?.as_bytes();
        Some(Tlv { kind, value })
    });

    let checksum = crc32c || passed_on.find(Tlv::CRC32C).is_some();
    let limit = MAX_V2_HEADER - if checksum { TLV_HEADER + 4 } else { 0 };
    for tlv in passed_on.iter().filter(|tlv| tlv.kind != Tlv::CRC32C).chain(own) {
        if header.len() + TLV_HEADER + tlv.value.len() <= limit {
            push(header, tlv);
        }
    }
    checksum.then(|| {
        push(header, Tlv { kind: Tlv::CRC32C, value: &[0; 4] });
        header.len() - 4
    })
}

fn push(header: &mut Vec<u8>, Tlv { kind, value }: Tlv<'_>) {
    let length = u16::try_from(value.len()).expect("it fits a header of 4096 bytes");
    header.push(kind);
    header.extend(length.to_be_bytes());
    header.extend(value);
}

const TLV_HEADER: usize = 3;
