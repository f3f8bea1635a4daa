//! Guests that prove what happened to them: nothing lost, nothing twice, never two of them.
//!
//! [`boot_sector`] boots in a tenth of a second and shows memory only; [`linux`] has disk, network
//! and a power button, and boots in three seconds under TCG. [`record`] is what the Linux guest
//! leaves on its disk and sends over its network, [`heartbeat`] listens to the latter.

pub mod boot_sector;
mod cpio;
mod debian;
pub mod heartbeat;
pub mod linux;
pub mod record;
