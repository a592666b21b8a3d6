#include "apps/forge/out_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#include "forge/base/error.h"

namespace forge::app {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPartial = ".forge-partial";
constexpr const char* kCurrent = "current";
constexpr const char* kOld = "old";
constexpr const char* kNew = "new";

// Waits until the disk has it. Some file systems cannot wait for a folder, which is no fault of the folder.
void sync(const fs::path& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool done = file >= 0 && (fsync(file) == 0 || errno == EINVAL);
  const std::error_code error(errno, std::generic_category());
  if (file >= 0) close(file);
  if (!done) throw fs::filesystem_error("fsync", path, error);
}

void sync_files_in(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) sync(entry.path());
  sync(folder);
}

void write_probe(const fs::path& path) {
  std::ofstream file(path);
  file << "probe";
  file.close();
  if (file.fail()) throw fs::filesystem_error("write", path, {errno, std::generic_category()});
  sync(path);
}

// Writes elsewhere what has no room in --out, and says where.
std::string rescue(const std::function<void(const fs::path&)>& write) try {
  const fs::path folder = fs::temp_directory_path() / ("forge-model-" + std::to_string(getpid()));
  fs::create_directory(folder);
  write(folder);
  return "it is in " + folder.string() + " instead";
} catch (const std::exception&) {
  return "is the disk full?";
}

// Without a slash at the end.
fs::path full_name(const fs::path& path) {
  check(!path.empty(), "--out: the name is empty; name a folder");
  return fs::absolute(path / "").parent_path();
}

}  // namespace

OutFolder::Lock::~Lock() {
  if (file_ >= 0) close(file_);
}

// A file system without locks gives another error; there, two runs at once are the user's affair.
void OutFolder::Lock::take(const fs::path& folder) {
  file_ = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file_ < 0) throw fs::filesystem_error("open", folder, {errno, std::generic_category()});
  check(flock(file_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK, "--out: another run is writing to ", folder,
        "; wait for its end or name another folder");
}

OutFolder::NewFolders::~NewFolders() {
  std::error_code not_empty;
  for (const fs::path& folder : made_) fs::remove(folder, not_empty);
}

void OutFolder::NewFolders::make(const fs::path& path) {
  for (fs::path folder = path; !fs::exists(fs::symlink_status(folder)); folder = folder.parent_path())
    made_.push_back(folder);
  fs::create_directories(path);
}

OutFolder::OutFolder(const fs::path& path, std::vector<std::string> names, bool force)
    : path_(full_name(path)), partial_(path_ / kPartial), names_(std::move(names)) {
  try {
    new_folders_.make(path_);
    lock_.take(path_);
    settle();
    check_contents(force);
    rehearse();
  } catch (const fs::filesystem_error& error) {
    fail("--out: ", path, " cannot take a model: ", error.code().message(), " at ", error.path1(),
         "; name another folder");
  }
}

void OutFolder::check_contents(bool force) const {
  check(force || fs::is_empty(path_), "--out: ", path_,
        " is not empty; name another folder, or give --force to replace the model in it");
  for (const std::string& name : names_) {
    std::error_code unreadable;
    const fs::file_type type = fs::status(path_ / name, unreadable).type();
    check(type == fs::file_type::regular || type == fs::file_type::not_found, "--out: ", path_ / name,
          " is no file, and a model's file has to go there; move it away or name another folder");
  }
}

void OutFolder::check_room(std::uint64_t bytes) const {
  std::error_code unknown;
  const fs::space_info space = fs::space(path_, unknown);
  const bool known = !unknown && space.capacity > 0;
  check(!known || space.available >= bytes, "--out: the model takes ", bytes, " bytes and ", path_, " has room for ",
        space.available, "; free some or name a folder on another disk");
}

std::vector<std::string> OutFolder::present() const {
  std::vector<std::string> files;
  std::ranges::copy_if(names_, std::back_inserter(files), [&](const auto& name) { return fs::exists(path_ / name); });
  return files;
}

void OutFolder::begin() const {
  fs::create_directories(partial_ / kNew);
  fs::create_directory(partial_ / kOld);
}

void OutFolder::rehearse() try {
  begin();
  const std::string& longest =
      *std::ranges::max_element(names_, {}, [](const std::string& name) { return name.size(); });
  write_probe(partial_ / kNew / longest);
  std::error_code refused;
  fs::create_symlink(kOld, partial_ / kCurrent, refused);
  has_links_ = !refused;
  const std::vector<std::string> old = present();
  check(has_links_ || old.empty(), "--out: ", path_,
        " has no symbolic links, without which a model cannot be replaced in one stroke; name an empty folder");
  keep_old(old);
  for (const std::string& name : old) put_link(fs::path(kPartial) / kCurrent / name, path_ / name);
  settle();
} catch (...) {
  settle();
  throw;
}

// A link among the old files is kept as one, by its full name because it lies deeper here.
void OutFolder::keep_old(const std::vector<std::string>& files) const {
  for (const std::string& name : files) {
    const fs::path file = path_ / name, kept = partial_ / kOld / name;
    if (fs::is_symlink(file)) {
      fs::create_symlink(fs::canonical(file), kept);
    } else {
      fs::create_hard_link(file, kept);
    }
  }
}

// In place of what is there, in one stroke.
void OutFolder::put_link(const fs::path& target, const fs::path& place) const {
  const fs::path link = partial_ / "link";
  fs::create_symlink(target, link);
  fs::rename(link, place);
}

void OutFolder::stage(const std::function<void(const fs::path&)>& write) const try {
  fs::create_directories(path_);
  settle();
  begin();
  write(partial_ / kNew);
  sync_files_in(partial_ / kNew);
} catch (const std::exception& error) {
  std::error_code ignored;
  fs::remove_all(partial_, ignored);
  fail("--out: the model cannot be written (", error.what(), "); ", rescue(write));
}

void OutFolder::save(const std::function<void(const fs::path&)>& write) {
  stage(write);
  try {
    has_links_ ? commit() : commit_without_links();
  } catch (const fs::filesystem_error& error) {
    fail("--out: ", error.path1(), ": ", error.code().message(), "; the model is whole in ", partial_ / kNew,
         ": move it before another run, which removes that folder");
  }
}

void OutFolder::commit() const {
  const std::vector<std::string> old = present();
  keep_old(old);
  std::set<std::string> files(old.begin(), old.end());
  for (const auto& entry : fs::directory_iterator(partial_ / kNew)) files.insert(entry.path().filename().string());
  put_link(kOld, partial_ / kCurrent);
  for (const std::string& name : files) put_link(fs::path(kPartial) / kCurrent / name, path_ / name);
  sync(partial_ / kOld);
  sync(partial_);
  sync(path_);
  put_link(kNew, partial_ / kCurrent);
  sync(partial_);
  settle();
}

// There was no model, and there is one when the last name is there.
void OutFolder::commit_without_links() const {
  for (const std::string& name : names_) {
    if (fs::exists(partial_ / kNew / name)) fs::rename(partial_ / kNew / name, path_ / name);
  }
  settle();
}

void OutFolder::settle() const {
  std::vector<fs::path> links;
  const fs::path ours = fs::path(kPartial) / kCurrent;
  for (const auto& entry : fs::directory_iterator(path_)) {
    if (entry.is_symlink() && fs::read_symlink(entry.path()).parent_path() == ours) links.push_back(entry.path());
  }
  for (const fs::path& link : links) {
    const fs::path file = path_ / ours / link.filename();
    fs::exists(fs::symlink_status(file)) ? fs::rename(file, link) : void(fs::remove(link));
  }
  sync(path_);
  fs::remove_all(partial_);
}

}  // namespace forge::app
