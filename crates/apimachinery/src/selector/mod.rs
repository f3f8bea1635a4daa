//! Label and field selectors.

mod field;
mod label;

pub use field::FieldSelector;
pub use label::LabelSelector;
pub(crate) use label::is_value as is_label_value;
