#include "apps/forge/safetensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>

#include "apps/forge/test_folder.h"
#include "forge/base/error.h"

namespace forge::app {
namespace {

std::string file_of(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

TEST(Safetensors, ComeBackAsTheyWere) {
  const TestFolder folder;
  const std::vector<NamedTensor> tensors = {{"matrix", at::arange(6, at::kFloat).view({2, 3})},
                                            {"half", at::arange(3, at::kBFloat16)},
                                            {"turned", at::arange(6, at::kFloat).view({2, 3}).t()},
                                            {"empty", at::empty({0, 4}, at::kHalf)}};
  write_safetensors(folder / "m.safetensors", tensors);
  const auto loaded = read_safetensors(folder / "m.safetensors");
  ASSERT_EQ(loaded.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(loaded.at(name).scalar_type(), tensor.scalar_type());
    EXPECT_TRUE(at::equal(loaded.at(name), tensor)) << name;
  }
}

TEST(Safetensors, RefuseDamagedFiles) {
  const TestFolder folder;
  const std::string data(8, '\0');
  const char* const headers[] = {
      "not json",
      "[]",
      R"({"a": 1})",
      R"({"a": {"dtype": "F32", "shape": [2]}})",
      R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})",
      R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}})",
      R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})",
      R"({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}})",
      R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}})",
      R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [18446744073709551612, 4]}})",
      R"({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}})",
  };
  for (const char* header : headers) {
    EXPECT_THROW(read_safetensors(folder.write("bad", file_of(header, data))), Error) << header;
  }
}

// "a" and "b" are eight bytes each, of sixteen.
std::string two_at(const std::string& a, const std::string& b) {
  const auto entry = [](const std::string& place) {
    return R"({"dtype": "F32", "shape": [2], "data_offsets": )" + place + "}";
  };
  return R"({"a": )" + entry(a) + R"(, "b": )" + entry(b) + "}";
}

// What the format's own library does with each is a test of the program (tests/test_app_safetensors.py).
TEST(Safetensors, RefuseLayoutsThatAreNotWhole) {
  const TestFolder folder;
  const auto read = [&](const std::string& header, std::size_t bytes) {
    read_safetensors_shapes(folder.write("file", file_of(header, std::string(bytes, '\0'))));
  };
  EXPECT_NO_THROW(read(two_at("[0, 8]", "[8, 16]"), 16));
  EXPECT_NO_THROW(read(two_at("[8, 16]", "[0, 8]"), 16));
  EXPECT_NO_THROW(read("  {}", 0));
  EXPECT_THROW(read("{}", 1), Error);
  EXPECT_THROW(read(two_at("[0, 8]", "[0, 8]"), 16), Error);        // one place
  EXPECT_THROW(read(two_at("[0, 8]", "[4, 12]"), 12), Error);       // an overlap
  EXPECT_THROW(read(two_at("[0, 8]", "[12, 20]"), 20), Error);      // a hole
  EXPECT_THROW(read(two_at("[4, 12]", "[12, 20]"), 20), Error);     // a hole in front
  EXPECT_THROW(read(two_at("[0, 8]", "[8, 16]"), 17), Error);       // a byte behind
  EXPECT_THROW(read(two_at("[0, 8]", "[8.0, 16]"), 16), Error);     // a fraction
  EXPECT_THROW(read(two_at("[0, 8]", "[8, 16, 16]"), 16), Error);   // three
  EXPECT_THROW(read(two_at("[0, 8]", R"(["8", 16])"), 16), Error);  // a text
  const std::string whole = two_at("[0, 8]", "[8, 16]");
  EXPECT_THROW(read("\xEF\xBB\xBF" + whole, 16), Error);
  EXPECT_THROW(read(whole + std::string(2, '\0'), 16), Error);
}

TEST(Safetensors, RefuseSizesThatAreNone) {
  const TestFolder folder;
  for (const char* shape : {"[2.0]", "[-2]", "[1.5, 2]", R"(["2"])", "2", "[true, 2]", "[18446744073709551615]"}) {
    const std::string header =
        std::string(R"({"a": {"dtype": "F32", "shape": )") + shape + R"(, "data_offsets": [0, 8]}})";
    EXPECT_THROW(read_safetensors(folder.write("bad", file_of(header, std::string(8, '\0')))), Error) << shape;
  }
}

TEST(Safetensors, AreFiles) {
  const TestFolder folder;
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  std::filesystem::create_symlink("loop", folder / "loop");
  for (const char* name : {"", "pipe", "loop"}) EXPECT_THROW(read_safetensors(folder / name), Error) << name;
}

TEST(Safetensors, RefuseFilesCutShort) {
  const TestFolder folder;
  EXPECT_THROW(read_safetensors(folder / "absent"), Error);
  EXPECT_THROW(read_safetensors(folder.write("seven", "1234567")), Error);
  const std::string header = R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})";
  const std::string whole = file_of(header, std::string(8, '\0'));
  EXPECT_NO_THROW(read_safetensors(folder.write("whole", whole)));
  for (std::size_t length = 0; length < whole.size(); ++length) {
    EXPECT_THROW(read_safetensors(folder.write("cut", whole.substr(0, length))), Error) << length;
  }
  std::string endless = whole;
  std::memset(endless.data(), 0xFF, 8);
  EXPECT_THROW(read_safetensors(folder.write("endless", endless)), Error);
}

}  // namespace
}  // namespace forge::app
