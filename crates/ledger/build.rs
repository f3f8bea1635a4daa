//! Builds again when a migration is added: the macro that embeds them cannot see the folder.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
