//! Values as flags take them: a word becomes a number or an address, or a sentence that says what would be accepted.
//! The flags name these as their parsers; `words` asks them again where something was wrong, to say all of it.
//! What a number is good for is judged later, with all other flags.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

/// What a flag wants a number for is judged later, with all other flags.
pub fn number(text: &str) -> Result<u64, String> {
    let shown: String = text.chars().take(40).collect();
    text.parse().map_err(|_| format!("{shown:?} is not a whole number; accepted: a whole number, as in 3"))
}

/// A number whose range is known here already.
pub fn within<T: TryFrom<u64>>(text: &str, range: RangeInclusive<u64>) -> Result<T, String> {
    let (low, high) = (range.start(), range.end());
    let accepted = match *high {
        u64::MAX => "a whole number, as in 3".to_owned(),
        high => format!("{low} to {high}"),
    };
    let good = text.parse::<u64>().ok().filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
    let shown: String = text.chars().take(40).collect();
    good.ok_or_else(|| format!("{shown:?} is not one of the numbers there are; accepted: {accepted}"))
}

pub fn address(text: &str) -> Result<SocketAddr, String> {
    let shown: String = text.chars().take(40).collect();
    text.parse().map_err(|_| format!("{shown:?} is not an address and a port; accepted: as in 127.0.0.1:6443 or [::1]:6443"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_its_range_says_the_range() {
        assert_eq!(within::<u8>("50", 1..=50), Ok(50));
        for bad in ["0", "51", "256", "-1", "x", ""] {
            let said = within::<u8>(bad, 1..=50).expect_err(bad);
            assert!(said.starts_with(&format!("{bad:?}")) && said.ends_with("accepted: 1 to 50"), "{said}");
        }
        assert!(number(&"9".repeat(300)).expect_err("long").len() < 120);
    }

    #[test]
    fn an_address_has_a_port() {
        assert!(address("127.0.0.1:6443").is_ok() && address("[::1]:80").is_ok());
        for bad in ["6443", "127.0.0.1", "localhost:80", ""] {
            assert!(address(bad).expect_err(bad).contains("accepted"), "{bad}");
        }
    }
}
