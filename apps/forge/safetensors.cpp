#include "apps/forge/safetensors.h"

#include <ATen/ops/empty.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "forge/base/error.h"

namespace forge::app {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the format's own limit

struct NamedType {
  const char* name;
  at::ScalarType dtype;
};
constexpr NamedType kTypes[] = {{"F32", at::kFloat}, {"BF16", at::kBFloat16}, {"F16", at::kHalf}};

const char* name_of(at::ScalarType dtype) {
  for (const auto& type : kTypes) {
    if (type.dtype == dtype) return type.name;
  }
  fail("safetensors: cannot write ", dtype, "; fp32, bf16 and fp16 can be written");
}

// One open file and what is said of it when something does not fit.
class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) : path_(path), file_(path, std::ios::binary) {
    require(file_.is_open(), "it cannot be opened");
    std::error_code error;
    size_ = std::filesystem::file_size(path, error);
    require(!error && size_ >= 8, "it is shorter than 8 bytes");
    read_header();
  }

  std::map<std::string, at::Tensor> tensors() {
    std::map<std::string, at::Tensor> result;
    for (const auto& [name, entry] : header_.items()) {
      if (name != "__metadata__") result.emplace(name, tensor(name, entry));
    }
    return result;
  }

 private:
  template <class... Parts>
  void require(bool ok, const Parts&... parts) const {
    check(ok, "safetensors: ", path_, " is damaged or not of this format: ", parts..., "; copy or download it again");
  }

  void read_header() {
    std::uint64_t length = 0;
    file_.read(reinterpret_cast<char*>(&length), sizeof length);
    require(length <= kMaxHeader && length <= size_ - 8, "its header would take ", length, " of its ", size_, " bytes");
    std::string text(length, '\0');
    file_.read(text.data(), static_cast<std::streamsize>(length));
    header_ = json::parse(text, nullptr, /*allow_exceptions=*/false);
    require(header_.is_object(), "its header is not JSON");
    data_ = 8 + length;
  }

  at::Tensor tensor(const std::string& name, const json& entry) try {
    const auto begin = entry.at("data_offsets").at(0).get<std::uint64_t>();
    const auto end = entry.at("data_offsets").at(1).get<std::uint64_t>();
    const auto shape = entry.at("shape").get<std::vector<std::int64_t>>();
    const at::ScalarType dtype = dtype_of(name, entry.at("dtype").get<std::string>());
    const std::uint64_t bytes = bytes_of(name, shape, dtype);
    require(begin <= end && end <= size_ - data_ && end - begin == bytes, name, " lies at [", begin, ", ", end,
            ") and needs ", bytes, " bytes of ", size_ - data_);
    at::Tensor result = at::empty(shape, dtype);
    file_.seekg(static_cast<std::streamoff>(data_ + begin));
    file_.read(static_cast<char*>(result.mutable_data_ptr()), static_cast<std::streamsize>(bytes));
    require(file_.good(), name, " cannot be read");
    return result;
  } catch (const json::exception&) {
    fail("safetensors: ", path_, ": the header's entry for ", name, " is not a tensor's; copy or download it again");
  }

  at::ScalarType dtype_of(const std::string& tensor, const std::string& name) const {
    for (const auto& type : kTypes) {
      if (name == type.name) return type.dtype;
    }
    fail("safetensors: ", path_, ": ", tensor, " is of type ", name, "; F32, BF16 and F16 can be read");
  }

  // Refuses a negative size and a product that would overflow.
  std::uint64_t bytes_of(const std::string& name, const std::vector<std::int64_t>& shape, at::ScalarType dtype) const {
    std::uint64_t bytes = c10::elementSize(dtype);
    for (const std::int64_t size : shape) {
      const bool fits = size >= 0 && (size == 0 || bytes <= size_ / static_cast<std::uint64_t>(size));
      require(fits, name, " is larger than the file");
      bytes *= static_cast<std::uint64_t>(size);
    }
    return bytes;
  }

  std::filesystem::path path_;
  std::ifstream file_;
  std::uint64_t size_ = 0, data_ = 0;
  json header_;
};

std::string header_of(const std::vector<NamedTensor>& tensors) {
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::uint64_t end = offset + tensor.nbytes();
    header[name] = {
        {"dtype", name_of(tensor.scalar_type())}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins at a multiple of 8
  return text;
}

}  // namespace

std::map<std::string, at::Tensor> read_safetensors(const std::filesystem::path& path) { return Reader(path).tensors(); }

void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors) {
  const std::string header = header_of(tensors);
  const std::uint64_t length = header.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << header;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor values = tensor.detach().contiguous().to(at::kCPU);
    file.write(static_cast<const char*>(values.const_data_ptr()), static_cast<std::streamsize>(values.nbytes()));
  }
  file.close();
  check(!file.fail(), "safetensors: cannot write ", path, "; is the disk full?");
}

}  // namespace forge::app
