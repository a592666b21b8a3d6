#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace forge::app {

// The folder of --out, from before training until a model is in it. At every moment, on a mount point too, a reader
// finds the whole old model or the whole new one there, so that a run may be killed anywhere:
//   1. New files are written to .forge-partial/new; hard links keep the old ones in .forge-partial/old.
//   2. .forge-partial/current is a symbolic link to `old`. Each file of a model becomes a link to current/NAME, one by
//      one, and reads as before; the link of a file that `old` does not have dangles, which readers take for absent.
//   3. One rename points `current` to `new`.
//   4. Files take the place of their links, and .forge-partial goes.
// The next run does step 4 for a killed one; before step 3 that restores the old files. Other files are not touched.
class OutFolder {
 public:
  // Makes the folder, locks it and does steps 1, 2 and 4 with what is there as a rehearsal. `names` are all files that
  // may belong to a model, the one without which there is no model last.
  // Throws Error where the folder cannot take a model, and where it is not empty unless `force`.
  OutFolder(const std::filesystem::path& path, std::vector<std::string> names, bool force);
  ~OutFolder() = default;
  OutFolder(const OutFolder&) = delete;
  OutFolder& operator=(const OutFolder&) = delete;

  // Throws Error where fewer bytes are free.
  void check_room(std::uint64_t bytes) const;
  // Puts in place what `write` writes to an empty folder that it is given: files of `names`. Throws Error where that
  // fails, with the place where the new model is instead.
  void save(const std::function<void(const std::filesystem::path&)>& write);

 private:
  // Released at the end, also by a kill.
  class Lock {
   public:
    ~Lock();
    void take(const std::filesystem::path& folder);

   private:
    int file_ = -1;
  };
  // Folders that were made; those that are empty at the end go again.
  class NewFolders {
   public:
    ~NewFolders();
    void make(const std::filesystem::path& path);

   private:
    std::vector<std::filesystem::path> made_;  // deepest first
  };

  std::vector<std::string> present() const;
  void check_contents(bool force) const;
  void rehearse();
  void begin() const;
  void keep_old(const std::vector<std::string>& files) const;
  void put_link(const std::filesystem::path& target, const std::filesystem::path& place) const;
  void stage(const std::function<void(const std::filesystem::path&)>& write) const;
  void commit() const;
  void commit_without_links() const;
  void settle() const;

  std::filesystem::path path_, partial_;
  std::vector<std::string> names_;
  bool has_links_ = false;  // symbolic ones can be made here
  Lock lock_;
  NewFolders new_folders_;
};

}  // namespace forge::app
