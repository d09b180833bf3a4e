//! Median and extremes, and numbers as people read them.

/// Median and extremes of at least one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) count: usize,
}

impl Spread {
    /// Of these values, if there are any.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let count = values.len();
        let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
        Some(Self { median, min, max, count })
    }

    /// The extremes.
    pub(crate) fn range(&self) -> String {
        format!("{} .. {}", amount(self.min), amount(self.max))
    }
}

/// A figure with as many digits as mean something, thousands set apart.
pub(crate) fn amount(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude < 100.0 {
        return match magnitude {
            _ if magnitude == 0.0 => "0".to_owned(),
            _ if magnitude < 0.1 => format!("{value:.3}"),
            _ => format!("{value:.2}"),
        };
    }
    let digits = format!("{magnitude:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}
