//! Compares two versions as the package manager does.

use std::cmp::Ordering;

use super::PackageType;

/// Compares two versions of a package; `None` for a type whose order kiln does not know.
#[must_use]
pub fn compare(kind: PackageType, one: &str, other: &str) -> Option<Ordering> {
    match kind {
        PackageType::Deb => Some(deb(one, other)),
        PackageType::Rpm => Some(rpm(one, other)),
        PackageType::Apk => None,
    }
}

/// Compares two versions by deb-version(7): epoch, upstream version and revision, one after the other.
fn deb(one: &str, other: &str) -> Ordering {
    let one = VersionParts::of(one);
    let other = VersionParts::of(other);
    one.epoch
        .cmp(&other.epoch)
        .then_with(|| deb_part(one.version.as_bytes(), other.version.as_bytes()))
        .then_with(|| deb_part(one.revision.as_bytes(), other.revision.as_bytes()))
}

/// Compares two versions by `rpmvercmp` (rpm-version(7)): epoch, version and release. The release counts only if both have
/// one.
fn rpm(one: &str, other: &str) -> Ordering {
    let one = VersionParts::of(one);
    let other = VersionParts::of(other);
    let order = one.epoch.cmp(&other.epoch).then_with(|| rpm_part(one.version.as_bytes(), other.version.as_bytes()));
    if one.revision.is_empty() || other.revision.is_empty() {
        return order;
    }
    order.then_with(|| rpm_part(one.revision.as_bytes(), other.revision.as_bytes()))
}

/// A version of the form `EPOCH:VERSION-REVISION`.
struct VersionParts<'v> {
    epoch: u64,
    version: &'v str,
    revision: &'v str,
}

impl<'v> VersionParts<'v> {
    fn of(text: &'v str) -> Self {
        let (epoch, rest) = match text.split_once(':') {
            Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
            None => (0, text),
        };
        let (version, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        Self { epoch, version, revision }
    }
}

/// Compares two parts of a version: alternately a run without digits, in which letters come before all else and a tilde
/// before everything, even the end, and a run of digits, compared as numbers.
fn deb_part(mut one: &[u8], mut other: &[u8]) -> Ordering {
    while !one.is_empty() || !other.is_empty() {
        let word = take_run(&mut one, |byte| !byte.is_ascii_digit());
        let other_word = take_run(&mut other, |byte| !byte.is_ascii_digit());
        for place in 0..word.len().max(other_word.len()) {
            match weight(word.get(place)).cmp(&weight(other_word.get(place))) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        match take_numbers(&mut one, &mut other) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

/// Returns the order of a character that is no digit, or of the end of the string: that comes after the tilde and before
/// everything else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    }
}

/// Compares two parts of a version: runs of digits and of letters, one after the other; other characters only separate them.
/// A tilde comes before everything, even the end, and a caret after the end and before everything else.
fn rpm_part(mut one: &[u8], mut other: &[u8]) -> Ordering {
    loop {
        take_run(&mut one, |byte| is_separator(*byte));
        take_run(&mut other, |byte| is_separator(*byte));
        match (one.first(), other.first()) {
            (Some(b'~'), Some(b'~')) | (Some(b'^'), Some(b'^')) => {
                (one, other) = (&one[1..], &other[1..]);
            }
            (Some(b'~'), _) | (None, Some(b'^')) => return Ordering::Less,
            (_, Some(b'~')) | (Some(b'^'), None) => return Ordering::Greater,
            (Some(b'^'), Some(_)) => return Ordering::Less,
            (Some(_), Some(b'^')) => return Ordering::Greater,
            (None, _) | (_, None) => return one.len().cmp(&other.len()),
            (Some(first), Some(second)) if first.is_ascii_digit() != second.is_ascii_digit() => {
                // A number is later than a word.
                return first.is_ascii_digit().cmp(&second.is_ascii_digit());
            }
            (Some(first), Some(_)) => {
                let order = if first.is_ascii_digit() {
                    take_numbers(&mut one, &mut other)
                } else {
                    take_run(&mut one, u8::is_ascii_alphabetic).cmp(take_run(&mut other, u8::is_ascii_alphabetic))
                };
                if order.is_ne() {
                    return order;
                }
            }
        }
    }
}

fn is_separator(byte: u8) -> bool {
    !byte.is_ascii_alphanumeric() && !matches!(byte, b'~' | b'^')
}

/// Takes the bytes at the beginning that belong to the run.
pub(in crate::disk) fn take_run<'t>(text: &mut &'t [u8], belongs: fn(&u8) -> bool) -> &'t [u8] {
    let end = text.iter().position(|byte| !belongs(byte)).unwrap_or(text.len());
    let (run, rest) = text.split_at(end);
    *text = rest;
    run
}

/// Takes the digits at the beginning of both strings, and compares them as numbers of any length; none are 0.
pub(in crate::disk) fn take_numbers(one: &mut &[u8], other: &mut &[u8]) -> Ordering {
    take_run(one, |byte| *byte == b'0');
    take_run(other, |byte| *byte == b'0');
    let one = take_run(one, u8::is_ascii_digit);
    let other = take_run(other, u8::is_ascii_digit);
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(compare: fn(&str, &str) -> Ordering, one: &str, other: &str, expected: Ordering) {
        assert_eq!(compare(one, other), expected, "{one} {other}");
        assert_eq!(compare(other, one), expected.reverse(), "{other} {one}");
    }

    #[test]
    fn debian_versions_are_ordered_as_deb_version_7_has_it() {
        // The manual's example of tildes, from the first to the last, and well-known examples.
        for row in [
            &["~~", "~~a", "~", "", "a"][..],
            &["1.0~beta1~svn1245", "1.0~beta1", "1.0", "1.0+b1", "1.0.1", "1.2", "1.10"],
            &["1-1", "1-1+b1", "1-1.1", "1-2", "1-10", "1.0-1", "2", "1:0.1"],
            &["1.0", "1.0a", "1.0+"],
            &["6.1.99-1", "6.1.106-3", "6.1.106-3+deb12u1"],
        ] {
            for (place, one) in row.iter().enumerate() {
                check(deb, one, one, Ordering::Equal);
                row[place + 1..].iter().for_each(|later| check(deb, one, later, Ordering::Less));
            }
        }
        for (one, other) in [("1.0", "1.00"), ("0:1", "1"), ("1-0", "1"), ("1.01", "1.1"), ("", "0")] {
            check(deb, one, other, Ordering::Equal);
        }
    }

    #[test]
    fn rpm_versions_are_ordered_as_rpm_version_7_has_it() {
        for (one, other) in [
            ("1.0", "2.0"),
            ("2.0", "2.0.1"),
            ("5.5p1", "5.5p2"),
            ("5.5p2", "5.5p10"),
            ("10xyz", "10.1xyz"),
            ("xyz.4", "8"),
            ("xyz.4", "2"),
            ("5.6p1", "6.5p1"),
            ("6.0", "6.0.rc1"),
            ("10a2", "10b2"),
            ("1.0~rc1", "1.0"),
            ("1.0~rc1", "1.0~rc2"),
            ("1.0~rc1~git123", "1.0~rc1"),
            ("1.0", "1.0^"),
            ("1.0^git1", "1.0^git2"),
            ("1.0^git1", "1.01"),
            ("1.0^20160101", "1.0.1"),
            ("1.0~rc1", "1.0~rc1^git1"),
            ("1.0^git1~pre", "1.0^git1"),
            ("1.0-1", "1.0-2"),
            ("2.0-1", "1:1.0-1"),
            ("20101121", "20101122"),
        ] {
            check(rpm, one, other, Ordering::Less);
        }
        for (one, other) in [
            ("2.0", "2_0"),
            ("a", "a+"),
            ("+_", "_+"),
            ("1.0010", "1.10"),
            ("a", "a"),
            ("1.05", "1.5"),
            ("1.0", "1.0-1"),
            ("0:1-1", "1-1"),
        ] {
            check(rpm, one, other, Ordering::Equal);
        }
    }

    proptest! {
        #[test]
        fn any_text_has_its_place(one in "[0-9a-z~^.+:-]{0,12}|.{0,6}", other in "[0-9a-z~^.+:-]{0,12}|.{0,6}", third in "[0-9a-z~^.+:-]{0,12}") {
            for compare in [deb, rpm] {
                prop_assert_eq!(compare(&one, &one), Ordering::Equal);
                prop_assert_eq!(compare(&one, &other), compare(&other, &one).reverse());
            }
            if deb(&one, &other).is_le() && deb(&other, &third).is_le() {
                prop_assert!(deb(&one, &third).is_le());
            }
        }
    }
}
