//! Sizes in bytes and durations as users write them: `512MiB`, `8GiB`; `90s`, `10m`, `1h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
/// Units of time, in seconds.
const TIME_UNITS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];

impl ByteSize {
    /// Returns a size of `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Returns a size of `n` gibibytes.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// A size or a duration that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not a number followed by a known unit of size.
    #[error("`{0}` is not a size; write a whole number and a unit, such as 512MiB or 8GiB")]
    Size(String),
    /// Not a number followed by a known unit of time.
    #[error("`{0}` is not a duration; write a whole number and a unit, such as 90s, 10m or 1h")]
    Duration(String),
    /// A number that does not fit into 63 bits.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// Parses a whole number with one of these units.
fn parse(text: &str, units: &[(&str, u64)], malformed: fn(String) -> ParseError) -> Result<u64, ParseError> {
    let (number, unit) = split(text).ok_or_else(|| malformed(text.to_owned()))?;
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(malformed(text.to_owned()));
    };
    let amount = number.checked_mul(*factor).filter(|amount| i64::try_from(*amount).is_ok());
    amount.ok_or_else(|| ParseError::TooLarge(text.to_owned()))
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    // More than 20 digits cannot be a u64; the caller's checked multiplication reports it as too large.
    Some((if number.is_empty() { return None } else { number.parse().unwrap_or(u64::MAX) }, unit))
}

impl FromStr for ByteSize {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse(text, &UNITS, ParseError::Size).map(Self)
    }
}

/// Formats at most one decimal, as in `8GiB` and `1.4GiB`. A whole number of its unit can be parsed again.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) = UNITS.into_iter().find(|(_, factor)| self.0 >= *factor).unwrap_or(("B", 1));
        let tenths = u128::from(self.0) * 10 / u128::from(factor);
        match tenths % 10 {
            0 => write!(f, "{}{name}", tenths / 10),
            digit => write!(f, "{}.{digit}{name}", tenths / 10),
        }
    }
}

/// Parses a duration in whole seconds, minutes or hours.
///
/// # Errors
/// When the string is not a whole number followed by `s`, `m` or `h`.
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    parse(text, &TIME_UNITS, ParseError::Duration).map(Duration::from_secs)
}

/// Returns the shortest string that [`parse_duration`] parses as this many whole seconds.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds > 0 && seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        seconds if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_and_refused() {
        assert_eq!("512MiB".parse(), Ok(ByteSize::mib(512)));
        assert_eq!("8GiB".parse(), Ok(ByteSize::gib(8)));
        for bad in ["", "8", "GiB", "10Q", "8 GiB", "-1GiB", "1.5GiB", "8gib", "１GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(
            "9223372036854775808B".parse::<ByteSize>(),
            Err(ParseError::TooLarge("9223372036854775808B".into()))
        );
        assert_eq!(ByteSize(1_503_238_554).to_string(), "1.4GiB");
        assert_eq!(ByteSize(ByteSize::mib(307).bytes() + 1).to_string(), "307MiB");
    }

    #[test]
    fn durations_are_read_and_refused() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "1", "m", "1d", "1.5h", "1h30m", "-1s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_whole_number_of_a_unit_survives_a_round_trip(n in 1u64..1024, unit in 0usize..5) {
            let size = ByteSize(n * UNITS[unit].1);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn any_seconds_survive_a_round_trip(n in 0..(1u64 << 40)) {
            let duration = Duration::from_secs(n);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = text.parse::<ByteSize>();
            let _ = parse_duration(&text);
        }
    }
}
