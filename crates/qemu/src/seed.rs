//! The disk that cloud-init in a guest reads: a small FAT volume, the same bytes on every host.

use std::io::{self, Cursor, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use godwit_model::seed::{Content, Seed, SeedSource};
use serde_json::json;

/// Room for the volume's own tables and folders, bytes.
const OVERHEAD: usize = 256 << 10;
/// Any will do, as long as it is the same everywhere.
const VOLUME_ID: u32 = 0x676f_6477;

/// Why the disk can't be made.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A content is not base64.
    #[error("{0} is not base64")]
    Base64(&'static str),
    /// The volume or its file can't be written.
    #[error("write the volume")]
    Write(#[from] io::Error),
}

/// Writes the disk to `path`, for its owner's eyes alone, over whatever is there.
///
/// # Errors
/// See [`SeedError`].
pub fn write(seed: &Seed, path: &Path) -> Result<(), SeedError> {
    let image = image(seed)?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&image)?;
    Ok(())
}

fn image(seed: &Seed) -> Result<Vec<u8>, SeedError> {
    let files = files(seed)?;
    let size: usize = files.iter().map(|(_, content)| content.len()).sum();
    let size = (size + OVERHEAD).next_multiple_of(64 << 10);
    let mut volume = Cursor::new(vec![0; size]);
    let label = match seed.source {
        SeedSource::NoCloud => b"CIDATA     ",
        SeedSource::ConfigDrive => b"CONFIG-2   ",
    };
    let options = FormatVolumeOptions::new()
        .volume_label(*label)
        .volume_id(VOLUME_ID);
    let options = match size < 4 << 20 {
        true => options.fat_type(FatType::Fat12),
        false => options,
    };
    fatfs::format_volume(&mut volume, options)?;
    // Built without a clock: files are of 1980 wherever they are made.
    let system = FileSystem::new(&mut volume, FsOptions::new())?;
    for (path, content) in files {
        let mut folder = system.root_dir();
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            folder = folder.create_dir(part)?;
        }
        folder.create_file(name)?.write_all(&content)?;
    }
    system.unmount()?;
    Ok(volume.into_inner())
}

/// Names and contents, as cloud-init's data sources define them.
fn files(seed: &Seed) -> Result<Vec<(&'static str, Vec<u8>)>, SeedError> {
    let user = bytes(&seed.user_data, "user data")?;
    let network = seed.network_data.as_ref();
    let network = network
        .map(|data| bytes(data, "network data"))
        .transpose()?;
    let (id, name) = (&seed.instance_id, &seed.hostname);
    let (meta_path, meta, user_path, network_path) = match seed.source {
        SeedSource::NoCloud => (
            "meta-data",
            json!({"instance-id": id, "local-hostname": name}),
            "user-data",
            "network-config",
        ),
        SeedSource::ConfigDrive => (
            "openstack/latest/meta_data.json",
            json!({"uuid": id, "instance_id": id, "hostname": name}),
            "openstack/latest/user_data",
            "openstack/latest/network_data.json",
        ),
    };
    let mut files = vec![
        (meta_path, meta.to_string().into_bytes()),
        (user_path, user),
    ];
    files.extend(network.map(|data| (network_path, data)));
    Ok(files)
}

fn bytes(content: &Content, what: &'static str) -> Result<Vec<u8>, SeedError> {
    match content {
        Content::Text(text) => Ok(text.clone().into_bytes()),
        Content::Base64(text) => {
            let packed: String = text.split_ascii_whitespace().collect();
            let decoded = STANDARD.decode(packed);
            decoded.map_err(|_| SeedError::Base64(what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt as _;

    fn seed(source: SeedSource) -> Seed {
        Seed {
            source,
            instance_id: "vm1.default".to_owned(),
            hostname: "vm1".to_owned(),
            user_data: Content::Base64("I2Nsb3VkLWNv\nbmZpZwo=".to_owned()),
            network_data: Some(Content::Text("version: 2".to_owned())),
        }
    }

    fn read(image: &mut [u8], path: &str) -> String {
        let system = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        let mut text = String::new();
        let mut file = system.root_dir().open_file(path).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn cloud_init_finds_its_files_under_their_names() {
        let mut no_cloud = image(&seed(SeedSource::NoCloud)).unwrap();
        assert_eq!(read(&mut no_cloud, "user-data"), "#cloud-config\n");
        assert_eq!(read(&mut no_cloud, "network-config"), "version: 2");
        let meta = read(&mut no_cloud, "meta-data");
        assert!(meta.contains("\"instance-id\":\"vm1.default\""), "{meta}");
        let mut drive = image(&seed(SeedSource::ConfigDrive)).unwrap();
        let user = read(&mut drive, "openstack/latest/user_data");
        assert_eq!(user, "#cloud-config\n");
        let system = FileSystem::new(Cursor::new(drive), FsOptions::new()).unwrap();
        assert_eq!(system.volume_label(), "CONFIG-2");
    }

    #[test]
    fn every_host_makes_the_same_bytes_and_keeps_them_to_itself() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        for path in &paths {
            write(&seed(SeedSource::NoCloud), path).unwrap();
        }
        let [one, other] = paths.map(|path| {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            std::fs::read(path).unwrap()
        });
        assert_eq!(one, other);
    }

    #[test]
    fn no_hosts_clock_is_in_it() {
        let image = image(&seed(SeedSource::NoCloud)).unwrap();
        let system = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        for entry in system.root_dir().iter() {
            assert_eq!(entry.unwrap().modified().date.year, 1980);
        }
    }

    #[test]
    fn the_largest_contents_fit() {
        let mut large = seed(SeedSource::NoCloud);
        large.user_data = Content::Text("x".repeat(512 << 10));
        large.network_data = Some(Content::Text("y".repeat(512 << 10)));
        let mut image = image(&large).unwrap();
        assert_eq!(read(&mut image, "user-data").len(), 512 << 10);
    }

    #[test]
    fn what_is_not_base64_is_named() {
        let mut bad = seed(SeedSource::NoCloud);
        bad.user_data = Content::Base64("%".to_owned());
        let error = image(&bad).unwrap_err();
        assert_eq!(error.to_string(), "user data is not base64");
    }
}
