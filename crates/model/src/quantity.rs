//! Kubernetes quantities: `256Mi`, `1.5G`, `500m`.

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a quantity: a number with one of Ki, Mi, Gi, Ti, Pi, Ei, k, M, G, T, P, E or m"
)]
pub struct InvalidQuantity(String);

/// Reads a quantity as a whole number, rounded up: bytes for memory.
///
/// # Errors
/// When `text` is no quantity, negative, or beyond 2^64.
pub fn parse(text: &str) -> Result<u64, InvalidQuantity> {
    scaled(text, 1).ok_or_else(|| InvalidQuantity(text.to_owned()))
}

/// Reads a quantity in thousandths, rounded up: millicores for CPU.
///
/// # Errors
/// As [`parse`].
pub fn parse_milli(text: &str) -> Result<u64, InvalidQuantity> {
    scaled(text, 1000).ok_or_else(|| InvalidQuantity(text.to_owned()))
}

fn scaled(text: &str, factor: u128) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator) = decimal(number)?;
    let (multiplier, divisor) = unit(suffix)?;
    let top = numerator.checked_mul(multiplier)?.checked_mul(factor)?;
    u64::try_from(top.div_ceil(denominator.checked_mul(divisor)?)).ok()
}

/// A decimal number as a fraction with a power of ten below.
fn decimal(text: &str) -> Option<(u128, u128)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() + fraction.len() > 30 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some((digits, scale))
}

fn unit(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1000_u128.pow(2), 1),
        "G" => (1000_u128.pow(3), 1),
        "T" => (1000_u128.pow(4), 1),
        "P" => (1000_u128.pow(5), 1),
        "E" => (1000_u128.pow(6), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("256Mi", 256 << 20),
            ("1G", 1_000_000_000),
            ("1.5Gi", 3 << 29),
            ("0", 0),
            ("1500m", 2),
            (".5k", 500),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_milli("500m"), Ok(500));
        assert_eq!(parse_milli("2"), Ok(2000));
    }

    #[test]
    fn nonsense_is_no_quantity() {
        for bad in ["", "Mi", "-1", "1Mb", "1e400", "99999999999999999999E", "."] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
