//! Between the types of SQL and ours.

use crate::LedgerError;
use godwit_model::placement::Hugepages;
use godwit_model::{Bytes, InvalidId, JobId, MachineId};
use jiff::Timestamp;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgArgumentBuffer, PgRow, PgTypeInfo, PgValueFormat, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Row, Type};
use std::time::Duration;
use uuid::Uuid;

/// Postgres counts from 2000-01-01T00:00:00Z; this is that moment in Unix microseconds.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;
/// Longest interval that is handed to SQL: a hundred years.
const INTERVAL_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A `timestamptz`, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At(pub(crate) Timestamp);

impl Type<Postgres> for At {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl Encode<'_, Postgres> for At {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let micros = self.0.as_microsecond() - POSTGRES_EPOCH_MICROS;
        Encode::<Postgres>::encode(micros, buffer)
    }
}

impl Decode<'_, Postgres> for At {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        if value.format() == PgValueFormat::Text {
            return Ok(Self(value.as_str()?.parse()?));
        }
        let micros = <i64 as Decode<Postgres>>::decode(value)?;
        let unix = micros.saturating_add(POSTGRES_EPOCH_MICROS);
        Ok(Self(Timestamp::from_microsecond(unix)?))
    }
}

/// A duration for SQL, in whole microseconds.
pub(crate) fn interval(duration: Duration) -> PgInterval {
    let micros = duration.min(INTERVAL_MAX).as_micros();
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(micros).unwrap_or(i64::MAX),
    }
}

/// A number for a `bigint`; beyond its range the largest, which every CHECK then judges.
pub(crate) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The id as SQL has it.
pub(crate) fn machine_uuid(id: &MachineId) -> Uuid {
    Uuid::parse_str(id.as_str()).expect("a MachineId is a UUID")
}

/// The id as SQL has it.
pub(crate) fn job_uuid(id: &JobId) -> Uuid {
    Uuid::parse_str(id.as_str()).expect("a JobId is a UUID")
}

/// What is in huge pages, of a node or of what is held there.
pub(crate) fn hugepages(row: &PgRow) -> Result<Hugepages, LedgerError> {
    Ok(Hugepages {
        mi2: Bytes(count(row, "hugepages_2mi_bytes")?),
        gi1: Bytes(count(row, "hugepages_1gi_bytes")?),
    })
}

/// Reads a UUID column as one of our ids.
pub(crate) fn id<T>(row: &PgRow, column: &str) -> Result<T, LedgerError>
where
    T: TryFrom<String, Error = InvalidId>,
{
    let uuid: Uuid = row.try_get(column)?;
    T::try_from(uuid.to_string()).map_err(|error| broken(column, error))
}

/// Reads a UUID column, or null, as one of our ids.
pub(crate) fn id_maybe<T>(row: &PgRow, column: &str) -> Result<Option<T>, LedgerError>
where
    T: TryFrom<String, Error = InvalidId>,
{
    let uuid: Option<Uuid> = row.try_get(column)?;
    uuid.map(|uuid| T::try_from(uuid.to_string()))
        .transpose()
        .map_err(|error| broken(column, error))
}

/// Reads a text column as one of our names.
pub(crate) fn name<T>(row: &PgRow, column: &str) -> Result<T, LedgerError>
where
    T: TryFrom<String, Error = InvalidId>,
{
    let text: String = row.try_get(column)?;
    T::try_from(text).map_err(|error| broken(column, error))
}

/// Reads a text column, or null, as one of our names.
pub(crate) fn name_maybe<T>(row: &PgRow, column: &str) -> Result<Option<T>, LedgerError>
where
    T: TryFrom<String, Error = InvalidId>,
{
    let text: Option<String> = row.try_get(column)?;
    text.map(T::try_from)
        .transpose()
        .map_err(|error| broken(column, error))
}

/// Reads a `bigint` column that is never negative.
pub(crate) fn count(row: &PgRow, column: &str) -> Result<u64, LedgerError> {
    let number: i64 = row.try_get(column)?;
    u64::try_from(number).map_err(|error| broken(column, error))
}

/// Reads a text column as a word of ours.
pub(crate) fn word<T>(
    row: &PgRow,
    column: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, LedgerError> {
    let text: String = row.try_get(column)?;
    read(&text).ok_or_else(|| broken(column, format!("{text:?} is not known")))
}

/// A column holds what we never write.
pub(crate) fn broken(column: &str, error: impl Into<BoxDynError>) -> LedgerError {
    LedgerError::Database(sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: error.into(),
    })
}
